# One environment, made when it is first needed. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.dlrun-installed
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: train test check format slow realdata test-services test-gpu soak scores bench clean

train: $(STAMP) ## train the embedded default and show how it went
	$(BIN)/dlrun train

test: $(STAMP) ## the fast tests, in JOBS processes
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: $(STAMP) ## what every commit must pass
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

slow: $(STAMP) ## the slow tests
	$(BIN)/python -m pytest -m slow -n $(JOBS) --dist worksteal

realdata: $(STAMP) ## shortened experiments on real data (DLRUN_TEST_DATA names its folder)
	$(BIN)/python -m pytest -m realdata -n $(JOBS) --dist worksteal

test-services: $(STAMP)
	$(BIN)/python -m pytest -m services

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m "gpu or multigpu"

soak: $(STAMP) ## kill and resume for a long time
	$(BIN)/python -m pytest -m slow tests/integration/test_kill_resume.py tests/integration/test_sweep.py \
	  -k "kill" --soak

scores: $(STAMP) ## whole experiments: make scores NAME="fashion_mnist_cnn transfer_digits"
	$(BIN)/python benchmarks/scores.py $(NAME)

bench: $(STAMP) ## speed, as ratios against a hand-written loop and peers
	$(BIN)/python -m pip install -q -e ".[dev,bench]" -c constraints.txt
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/startup.py

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.11 or newer, or say PYTHON=…"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]" -c constraints.txt
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
