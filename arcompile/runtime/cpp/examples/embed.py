"""Draw with an engine from Python, without torch: python embed.py <engine> <class> <picture.png>"""

import sys

import arcompile

engine = arcompile.load(sys.argv[1])
engine.generate(int(sys.argv[2]), seed=1).save(sys.argv[3])
assert "torch" not in sys.modules
