# Everything sets itself up in .venv; Python 3.11 or newer is all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint bench fuzz sanitize sbom audit clean

help: ## this text
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; give it as: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[build,dev]'
	touch $@

demo: $(VENV)/.ready ## compile the shipped demo model and draw a picture with it
	$(BIN)/arcompile build demo -o out/demo
	$(BIN)/arcompile generate out/demo --label $$(seq -s, 0 35) --seed 1 -o out/demo.png
	@echo "The picture is out/demo.png"

test: $(VENV)/.ready lint ## lint, and every test this machine can run
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(VENV)/.ready ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.ready ## the default benchmark
	$(BIN)/arcompile bench demo

fuzz: $(VENV)/.ready ## random graphs, programs and hostile files, for some minutes
	PYTHONPATH=tests $(BIN)/python -m fuzz graphs --count 1000
	PYTHONPATH=tests $(BIN)/python -m fuzz programs --count 200
	PYTHONPATH=tests $(BIN)/python -W ignore -m fuzz hostile --count 2000

sanitize: $(VENV)/.ready ## libarcompile under TSan, ASan, LSan and UBSan, over whole runs; some minutes
	$(BIN)/python tests/runtime/sanitize.py

sbom: $(VENV)/.ready ## the bill of materials, CycloneDX JSON, into out/
	@mkdir -p out
	$(BIN)/python .ci/sbom.py > out/sbom.json
	@echo "The bill is out/sbom.json"

audit: $(VENV)/.ready ## known vulnerabilities of the pinned versions; asks a public database
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit -r constraints.txt --no-deps --disable-pip

clean: ## remove what make made
	rm -rf $(VENV) out build .pytest_cache .mypy_cache .ruff_cache
