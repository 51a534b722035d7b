"""python -m arcompile"""

from arcompile.cli import main

main()
