# Two commands are enough on a fresh machine with Python 3.11 to 3.13:  make demo  and  make test
# Another interpreter:  make demo PYTHON=python3.12         Some tests only:  make test PYTEST_ARGS="-k jacobian"

PYTHON ?= python3
VENV ?= .venv
DEMO_OUTPUT ?= demo_output
PYTEST_ARGS ?=
PEERS ?= .venv-peers
JUDGES ?= .venv-judges
OUTPUT ?= bench.json
BENCH_ARGS ?=
GROUPS ?=
DATA ?=
OASIS ?= oasis
QUICK ?=
FUZZ_SCALE ?= 100
HOME_URL ?=

# Threads of OpenMP that wait for work give their core away soon, as the command line sets it: docs/decisions/cpu-threads.md.
export GOMP_SPINCOUNT ?= 300
export THP_MEM_ALLOC_ENABLE ?= 1

JUDGED := $(addprefix tests/test_,$(addsuffix .py,ants bids dicom_objects fsl napari ome_zarr physio point_readers \
	reading report_pages transform_files))

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-long test-judges fuzz bundle bench bench-scaling reproduce oasis tutorials docs package release lint format clean

help: ## Explain every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Make .venv with the pinned, tested versions (every other target does this first, once)

# The stamp is written last: a broken download is repeated, a finished one never.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("Python %d.%d found, 3.11 to 3.13 needed: name one, as in  make demo PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[demo,test,dev]'
	@touch $@

demo: $(STAMP) ## Register the built-in example pair in 3D and 2D: a table and pictures in demo_output/
	$(BIN)/python -m monai_nodeo.apps.demo --output $(DEMO_OUTPUT)

test: $(STAMP) ## Run the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-long: $(STAMP) ## Run the tests that take long, too
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'long or not long' $(PYTEST_ARGS)

fuzz: $(STAMP) ## Run the fuzz tests with FUZZ_SCALE=100 times the cases of the test suite, and others every time
	FUZZ_SCALE=$(FUZZ_SCALE) $(BIN)/python -m pytest tests/fuzz --show-capture=no $(PYTEST_ARGS)

bundle: $(STAMP) ## Build the bundle for the MONAI model zoo, dist/nodeo_image_registration_v*.zip, and check it by the zoo's rules
	$(BIN)/python zoo/build.py dist
	$(BIN)/python zoo/verify.py dist/nodeo_image_registration

# The other tools want other versions of numpy and scipy, and FireANTs pins an old SimpleITK: an environment of their own.
$(PEERS)/.installed: benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --disable-pip-version-check -r benchmarks/peers.txt
	$(PEERS)/bin/python -m pip install --disable-pip-version-check --no-deps fireants==1.5.0
	@touch $@

# Other tools that read what we write, and napari. Some want older Pythons or more than the part that is used; NiftyReg is
# built by a C++ compiler, in minutes; ANTs wants another numpy.
$(JUDGES)/.installed: tests/judges.txt setup.cfg constraints.txt
	$(PYTHON) -m venv $(JUDGES)
	$(JUDGES)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,napari]' -r tests/judges.txt
	CMAKE_POLICY_VERSION_MINIMUM=3.5 $(JUDGES)/bin/python -m pip install --disable-pip-version-check --no-deps \
		--ignore-requires-python afids-utils==0.2.0 pydicomrt==0.9.1 niftyreg==1.5.70rc1
	$(PYTHON) -m venv $(JUDGES)/ants
	$(JUDGES)/ants/bin/python -m pip install --disable-pip-version-check antspyx==0.6.3
	@touch $@

test-judges: $(JUDGES)/.installed ## Run the tests that want other tools (tests/judges.txt) and a screen (xvfb)
	MONAI_NODEO_ANTS=$(abspath $(JUDGES))/ants/bin/python PATH="$(abspath $(JUDGES))/bin:$$PATH" \
		xvfb-run -a $(JUDGES)/bin/python -m pytest -W ignore $(JUDGED) $(PYTEST_ARGS)

bench: $(STAMP) $(PEERS)/.installed ## Compare our presets with other tools on your own pairs: DATALIST=pairs.json (with labels), OUTPUT=bench.json
	$(BIN)/python benchmarks/compare.py $(DATALIST) --peers $(PEERS)/bin/python $(BENCH_ARGS) --output $(OUTPUT)

bench-scaling: $(STAMP) ## Time and memory against image size, and a profile of one iteration
	$(BIN)/python benchmarks/scaling.py --output $(OUTPUT)

# A quick run is kept apart from the recorded results.
QUICK_OUTPUT := reproduction_quick
QUICK_ARGS := $(if $(filter-out 0,$(QUICK)),--quick --results $(QUICK_OUTPUT)/results)

reproduce: $(STAMP) ## Run the experiments that have no result yet, write docs/reproduction.md: DATA=oasis GROUPS="cohort steps"; QUICK=1: small, no data
	$(BIN)/python -m experiments run $(GROUPS) $(if $(DATA),--data $(DATA)) $(QUICK_ARGS)
	$(BIN)/python -m experiments page $(QUICK_ARGS) $(if $(QUICK_ARGS),--output $(QUICK_OUTPUT)/reproduction.md)

oasis: $(STAMP) ## Download the OASIS data of the experiments (6.6 GB) and write data lists: OASIS=folder
	$(BIN)/python -m experiments oasis $(OASIS)

tutorials: $(STAMP) ## Run the notebooks of docs/tutorials and keep what they show
	$(BIN)/jupyter execute --inplace docs/tutorials/*.ipynb

docs: $(STAMP) ## Build the documentation site in site/; any warning is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: $(STAMP) ## Build and check sdist and wheel, try the wheel in a fresh environment: HOME_URL=https://github.com/OWNER/NAME
	$(BIN)/python release/package.py $(if $(HOME_URL),--home $(HOME_URL))
	release/try_wheel.sh "$(abspath $(BIN))/python" "$(abspath build/try_wheel)"

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' monai_nodeo/__init__.py)

release: $(STAMP) ## Check what is committed and tag its version; git push --tags publishes it
	@test -z "$$(git status --porcelain)" || { echo "commit what is changed first"; exit 1; }
	@grep -q '^## \[$(VERSION)\]' CHANGELOG.md || { echo "CHANGELOG.md has no heading [$(VERSION)]"; exit 1; }
	@! git rev-parse --quiet --verify v$(VERSION) || { echo "v$(VERSION) is tagged already"; exit 1; }
	$(MAKE) lint test package
	git tag -a v$(VERSION) -m "Version $(VERSION)"

lint: $(STAMP) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Format the code and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment, caches and the demo's output
	rm -rf $(VENV) $(PEERS) $(JUDGES) $(DEMO_OUTPUT) $(QUICK_OUTPUT) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
