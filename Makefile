# The two commands that matter are `make demo` and `make test`; both make their own virtual environment.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint format claims docs clean

# Teach on 8x8 digits, distil with NKD, and say whether it helped: a table here, a page in runs/demo.
demo: $(READY)
	rm -rf runs/demo
	$(BIN)/stillroom run nkd --out runs/demo

test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/python tools/pages.py --check
	$(BIN)/python tools/house.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Slow: measures what the papers claim over paired seeds. DATA=folder adds the claims that need real data.
claims: $(READY)
	$(BIN)/stillroom claims --workers 2 $(if $(DATA),--data-root $(DATA))

docs: $(READY)
	$(BIN)/python tools/pages.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[vision,text,diffusion,graphs,quantum,cluster,export,tracking,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) runs build dist
