# make help lists the targets. PYTHON=/path/to/python3.12 make run uses another Python.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell $(p) -c '$(FITS)' 2>/dev/null && echo $(p))))
PYTHON35 ?= $(firstword $(foreach p,python3.11 python3.10 python3,$(shell command -v $(p))))
PIP := -m pip install --quiet --disable-pip-version-check
SCALE ?= 1
ROUNDS ?= 3
MODE ?=
RUN = JAVA_HOME="$$(cat .venv/java_home)" .venv/bin/python
TEST = JAVA_HOME="$$(cat .venv/java_home)" PYTHONDONTWRITEBYTECODE=1

.PHONY: help setup run notebook notebook-outputs bench reliability mutations test test-all test-tools test-spark35 test-killed \
	test-minio test-readme test-yarn lint clean

help: ## lists the targets
	@grep -hE '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

run: .venv/java_home ## runs the job on the sample in data/, writes output/; FULL=1 rebuilds all tables
	@$(RUN) etl.py $(if $(FULL),--full)

notebook: .venv/notebook ## opens test_code.ipynb in JupyterLab
	@$(RUN) -m jupyterlab test_code.ipynb

notebook-outputs: .venv/tests ## runs test_code.ipynb on the sample and saves its outputs
	@$(RUN) tools/run_notebook.py

setup: .venv/tests ## sets up .venv and does nothing else

bench: .venv/tests ## measures the job and other programs; SCALE=0.025 is quick; see benchmarks/README.md
	@$(RUN) benchmarks/bench.py --scale $(SCALE) --rounds $(ROUNDS) $(MODE)

reliability: .venv/tests ## runs the tests that try to break the job, and writes the table in docs/guarantees.md
	@$(RUN) tools/reliability.py

mutations: .venv/tests ## breaks rules of etl.py one at a time, checks that a test fails each time, writes docs/mutations.md
	@$(TEST) .venv/bin/python tools/mutations.py

test: .venv/tests ## runs the tests that every change must pass, with a local S3 server, and the linter
	@$(TEST) .venv/bin/python -m pytest
	@.venv/bin/ruff check

test-all: test test-tools test-killed test-spark35 test-minio test-readme test-yarn ## runs all tests, including the long ones

test-tools: .venv/tests ## runs the tests of the oracle, the generator, the benchmarks and the notebook
	@$(TEST) .venv/bin/python -m pytest -m tools

test-spark35: .venv35/tests .venv/java_home ## runs the job's tests on Spark 3.5.6, the version on emr-7.13.0
	@$(TEST) NIGHTS=2 .venv35/bin/python -m pytest tests/test_tables.py tests/test_lines.py tests/test_job.py \
		tests/test_accounting.py tests/test_audit.py tests/test_report.py tests/test_nightly.py

test-killed: .venv/tests ## kills the job with SIGKILL at each step, with tables on a disk and on S3
	@$(TEST) .venv/bin/python -m pytest -m killed -n 2 --dist load

test-minio: .venv/tests ## tests uploads and the job on a MinIO server; the first run builds the server with Go
	@$(TEST) .venv/bin/python -m pytest -m minio -n 0

test-readme: .venv/tests ## runs the local S3 example of README.md as written
	@$(TEST) .venv/bin/python -m pytest -m slow -n 0

test-yarn: .venv/tests .venv35/tests ## runs the job on a real YARN cluster on this machine
	@$(TEST) .venv/bin/python -m pytest -m yarn -n 0

lint: .venv/tests ## runs the linter
	@.venv/bin/ruff check

clean: ## deletes .venv, .venv35 and output
	rm -rf .venv .venv35 output

.venv/installed: requirements.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.13 found; install one, or name it: make PYTHON=/path/to/python3.12 run"; exit 1; }
	@$(PYTHON) -c '$(FITS)' || { echo "$(PYTHON) is not Python 3.11 to 3.13: name one with make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Setting up .venv (once)"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python $(PIP) -r requirements.txt
	@touch $@

.venv/java_home: .venv/installed tools/java_home.py
	@.venv/bin/python tools/java_home.py > $@.tmp
	@grep -q JAVA_HOME .venv/bin/activate || echo "export JAVA_HOME=\"$$(cat $@.tmp)\"" >> .venv/bin/activate
	@mv $@.tmp $@

.venv/tests: .venv/java_home requirements-dev.txt
	@.venv/bin/python $(PIP) -r requirements-dev.txt
	@touch $@

.venv/notebook: .venv/tests requirements-notebook.txt
	@echo "Installing JupyterLab (once)"
	@.venv/bin/python $(PIP) -r requirements-notebook.txt
	@touch $@

.venv35/tests: requirements.txt requirements-dev.txt
	@echo "Setting up .venv35 (once)"
	@$(PYTHON35) -m venv .venv35
	@.venv35/bin/python $(PIP) pyspark==3.5.6
	@sed -e '/^-r/d' -e '/^pyspark/d' requirements.txt requirements-dev.txt > .venv35/requirements.txt
	@.venv35/bin/python $(PIP) -r .venv35/requirements.txt
	@touch $@
