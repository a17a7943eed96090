# make demo: installs, draws faces, trains, evaluates, predicts; < 10 minutes.
# make test: installs and runs every test.
# make test-browser: opens pages in a Chromium that is installed here.
# make soak: trains a run twice, once under faults, and compares; SEED=0 draws
#   which, some 4 minutes.
# make test-pods: compiles whole training steps for TPU pods; some 7 minutes.
# make mutants: breaks the core line of public functions; tests must notice.
# make test-lowest: tries the lowest versions that requirements.txt allows.
# make test-wheel: builds the wheel, installs it and uses it elsewhere.
# make test-torch: installs PyTorch and compares numbers with it; 5 minutes.
# make test-cpu: installs OpenVINO and onnxruntime and compares numbers with them.
# make test-aot, test-aot-gpu: compiles the kernels for TPUs and for an H200,
#   with their own compilers, which it downloads (0.2 and 0.1 GB).
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/quickstart
SEED ?= 0
TORCH ?= torch==2.13.0
JAX2ONNX := jax2onnx>=0.17.1,<0.18
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-wheel test-lowest test-torch test-cpu test-browser soak test-aot test-pods test-aot-gpu mutants lint format clean

demo: $(STAMP)
	$(BIN)/python train.py --config=configs/quickstart.py --workdir=$(RUN)
	$(BIN)/python eval.py --workdir=$(RUN)
	$(BIN)/mira draw $(RUN)/surprise.mp4 --person=5
	$(BIN)/mira predict $(RUN)/surprise.mp4 --workdir=$(RUN) --out=$(RUN)/pictures
	$(BIN)/mira explain $(RUN)/surprise.mp4 --workdir=$(RUN) --out=$(RUN)/pages
	$(BIN)/mira report $(RUN) --out=$(RUN)/pages/report.html
	@echo
	@echo "picture of a clip:  $(RUN)/pictures/surprise.png"
	@echo "confusion matrix:   $(RUN)/eval/synthetic_faces_macro-test/confusion.png"
	@echo "page of the clip:   $(RUN)/pages/surprise.html"
	@echo "page of the run:    $(RUN)/pages/report.html"
	@echo "your own clip:      $(BIN)/mira predict CLIP --workdir=$(RUN)"

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile

LOWEST := $(VENV)/lowest
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	sed -E 's/>=([0-9.]+)[^#]*/==\1  /' requirements.txt > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet -r $(LOWEST)/lowest.txt \
	  pytest pillow hypothesis
	$(LOWEST)/bin/python -m pip install --quiet --no-deps -e .
	$(LOWEST)/bin/python -m pytest tests/cli/test_cli.py tests/video/test_decode.py \
	  tests/figures/test_figures.py tests/prepare/test_prepare.py \
	  tests/train/test_checkpoint.py

# The wheel has all that it needs: it is used outside of the checkout.
WHEEL := $(VENV)/wheel
test-wheel: $(STAMP)
	rm -rf build $(WHEEL)
	$(BIN)/python -m build --quiet --wheel --outdir $(WHEEL)/dist
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/pip install --quiet $(WHEEL)/dist/*.whl
	$(BIN)/python tests/wheel/use.py $(WHEEL)/venv/bin/mira

test-torch: $(STAMP)
	$(BIN)/python -m pip install --quiet '$(TORCH)' -e '.[torch]'
	$(BIN)/python -m pytest tests/parity/test_torch.py \
	  tests/parity/test_torch_training.py

# jax2onnx asks for an older orbax, of which it uses nothing here.
test-cpu: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[cpu]'
	$(BIN)/python -m pip install --quiet --no-deps '$(JAX2ONNX)'
	$(BIN)/python -m pytest -n auto tests/inference/test_backends.py

test-browser: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[demo]' 'playwright>=1.50'
	$(BIN)/python -m pytest tests/browser

soak: $(STAMP)
	$(BIN)/python bench/soak.py --seed=$(SEED)

test-aot: $(STAMP)
	$(BIN)/python tests/aot/install.py tpu $(VENV)/aot-tpu
	MIRA_AOT_TPU=$(VENV)/aot-tpu $(BIN)/python -m pytest tests/aot/test_tpu.py

test-pods: $(STAMP)
	$(BIN)/python tests/aot/install.py tpu $(VENV)/aot-tpu
	MIRA_AOT_TPU=$(VENV)/aot-tpu $(BIN)/python -m pytest tests/aot/test_pods.py

test-aot-gpu: $(STAMP)
	$(BIN)/python tests/aot/install.py cuda $(VENV)/aot-cuda
	JAX_PLATFORMS=cpu MIRA_AOT_CUDA=$(VENV)/aot-cuda \
	  $(BIN)/python -m pytest tests/aot/test_gpu.py

mutants: $(STAMP)
	$(BIN)/python tests/mutants.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>&- \
	  || { echo 'needs Python 3.11 or later with venv: make PYTHON=python3.12'; \
	       exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev,hub]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
