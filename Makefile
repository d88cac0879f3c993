# make demo    installs what it needs into .venv, paints `desert:50 | snow:25`, writes picture and MP4
# make studio  installs what it needs, opens the page to steer a picture in; make notebook opens JupyterLab
# make test    installs what it needs, checks style, runs the tests
# make test-all   also the slow ones
# make quality  paints what prompts.yaml asks for and prints what a judge reads; make judge trains that one anew
# make curves   draws what was logged while the embedded pair was trained
# make test-browser   the studio in JupyterLab and Voila, in chromium (apt-get install chromium)
# make test-colab     the studio's messages on the kernel that Colab has; PYTHON=python3.13 as there
# make bench    measures how fast it is beside a plain loop; ROWS="step-256 video" only these, QUICK=1 tries it out
# make scaling  draws how time and memory grow with size and cutouts into media/; QUICK=1 tries it out
# make bench-studio   measures how quickly the studio answers, in chromium
# make profile  says where a step's time goes
# PYTHON=python3.12 make ...   takes another Python (3.10 to 3.13)

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --constraint constraints.txt

# torchvision comes along unused with every install; a build for another torch (a CPU torch's) breaks whoever imports it
FITTING = $(BIN)/python -c "import torchvision" 2> /dev/null || $(BIN)/python -m pip uninstall --quiet --yes torchvision

.PHONY: demo studio notebook test test-all test-browser test-colab train judge quality curves bench scaling bench-studio profile lint clean

demo: $(VENV)/installed
	$(BIN)/vqclip generate "desert:50 | snow:25" --workspace workspace
	$(BIN)/vqclip video --workspace workspace

studio: $(VENV)/installed-studio
	$(BIN)/vqclip studio --workspace workspace

notebook: $(VENV)/installed-notebook
	VQCLIP_HOME="$(CURDIR)/workspace" $(BIN)/jupyter lab notebooks/00_studio.ipynb

# The tests of a file share its models, so a file is one process's; each has one thread, see conftest.py
BESIDE = --numprocesses auto --maxprocesses 4 --dist loadfile

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest $(BESIDE)

test-all: $(VENV)/installed-test lint
	$(BIN)/python -m pytest $(BESIDE) -m "not browser and not colab"

test-browser: $(VENV)/installed-browser
	$(BIN)/python -m pytest -m browser

test-colab: $(VENV)/installed-test $(VENV)-colab/installed
	VQCLIP_COLAB_PYTHON=$(VENV)-colab/bin/python $(BIN)/python -m pytest -m colab

lint: $(VENV)/installed-test
	$(BIN)/ruff check .

# NumPy's own threads would be in the way of the processes that paint
train: $(VENV)/installed-train
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m training.train

judge: $(VENV)/installed
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m training.judge

quality: $(VENV)/installed
	$(BIN)/python -m training.quality

curves: $(VENV)/installed-plots
	$(BIN)/python -m training.show

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.bench $(ROWS) $(if $(QUICK),--quick)

scaling: $(VENV)/installed-plots
	$(BIN)/python -m benchmarks.scaling $(if $(QUICK),--quick --results workspace --out workspace/scaling.png)

bench-studio: $(VENV)/installed-browser
	$(BIN)/python -m benchmarks.studio $(if $(QUICK),--quick)

profile: $(VENV)/installed
	$(BIN)/python -m benchmarks.bench --profile $(if $(QUICK),--quick)

$(VENV)/installed: requirements.txt constraints.txt setup.py
	$(PYTHON) -c "import sys; assert (3, 10) <= sys.version_info < (3, 14), 'vqclip needs Python 3.10 to 3.13'"
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes the first time, most of it is torch"
	$(PIP) --editable .
	$(FITTING)
	touch $@

WITH = $(VENV)/installed-test $(VENV)/installed-plots $(VENV)/installed-studio $(VENV)/installed-notebook \
	$(VENV)/installed-train
$(WITH): $(VENV)/installed-%: $(VENV)/installed
	$(PIP) --editable ".[$*]"
	$(FITTING)
	touch $@

$(VENV)/installed-browser: $(VENV)/installed-test
	$(PIP) --editable ".[browser]"
	$(FITTING)
	touch $@

$(VENV)-colab/installed: requirements.txt constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)-colab
	$(VENV)-colab/bin/python -m pip install --quiet --use-pep517 --constraint constraints.txt --editable . \
		ipykernel==6.17.1 ipython==7.34.0 ipywidgets==7.7.1 "jupyter_client<8" setuptools
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-colab build *.egg-info .pytest_cache .ruff_cache .hypothesis
