# Everything works from a fresh clone that has make and Python 3.11 or newer; nothing is installed outside of .venv.
#
#   make up        run Lastevent on this machine (make up ARGS="--port 9000")
#   make quick     the tests that start no processes, at each save: under a minute (make quick ARGS="-x")
#   make test      all tests (make test ARGS="tests/log -x")
#   make check     lint, format and types; silent when all is well
#   make chaos     break everything for five minutes, then say what was lost (make chaos ARGS="--seed 2")
#   make clients   clients of others, also those that compile for minutes (Rust, Kotlin), through a proxy that cuts
#   make bench     the benchmarks, a quarter of an hour (make bench ARGS="relay fanout --rounds 1");
#                  beside a commit, in turn (make bench ARGS="relay fanout memory first_token --against HEAD~1")
#   make setup     .venv only (the others do it when it is needed)
#   make requirements   pin the newest dependencies that pyproject.toml allows and that are seven days old

.PHONY: setup up quick test check chaos clients bench requirements
MAKEFLAGS += --no-print-directory
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11
BIN := .venv/bin

setup: .venv/installed
	@:

up: .venv/installed
	@exec $(BIN)/lastevent up $(ARGS)

# Four processes on two cores, since many tests wait for processes of their own; whole files, since a file's tests share
# servers, browsers and databases. With .pyc files, also where they are switched off: without them each process
# compiles every test for itself.
test: .venv/installed
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# What starts processes is left out by tests/rig/starts.py; the search of the protocol takes too long for it.
quick: .venv/installed
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not processes" -p no:schemathesis --ignore tests/protocol $(ARGS)

check: .venv/installed
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "Not formatted (run $(BIN)/ruff format):"; $(BIN)/ruff format --check; }
	@$(BIN)/mypy --no-error-summary

chaos: .venv/installed
	@$(BIN)/python -m tests.faults $(ARGS)

clients: .venv/installed
	@$(BIN)/python -m tests.clients $(ARGS)

bench: .venv/installed
	@$(BIN)/python -m bench $(ARGS)

# Only a set-up that went through leaves this file. Without build isolation, since isolation would fetch a setuptools
# that no hash was checked for.
.venv/installed: requirements.txt pyproject.toml
	@$(find_python); $(make_venv)
	@echo "Installing the dependencies into .venv (only when requirements.txt or pyproject.toml changed)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# uv, since it alone pins for every platform and Python version at once. setuptools is listed by build-system.requires
# only, where uv does not look.
#
# What was published in the last seven days is left out: a package that somebody else has taken over is mostly found and
# removed within days.
requirements: build/uv/bin/uv
	@build/uv/bin/python -c 'import tomllib as t; \
	    print(*t.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > build/build-system.in
	@build/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --exclude-newer "$$(build/uv/bin/python -c 'import datetime as d; print(d.datetime.now(d.UTC).date() - d.timedelta(7))')" \
	    --no-emit-index-url --custom-compile-command "make requirements" \
	    --extra dev pyproject.toml build/build-system.in --output-file requirements.txt

build/uv/bin/uv:
	@$(find_python); "$$python" -m venv build/uv
	@build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

# A name may be there and not run (version managers leave such shims), so each is tried.
define find_python
python=; for name in $(PYTHONS); do \
    if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
done; \
if [ -z "$$python" ]; then \
    echo "Lastevent needs Python 3.11 or newer; none of these is: $(PYTHONS)" >&2; exit 1; \
fi; \
if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
    version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
    echo "Python $$version here lacks ensurepip; on Debian or Ubuntu: apt install python$$version-venv" >&2; exit 1; \
fi
endef

# An environment whose Python has gone (an upgrade, a moved tree) is made anew.
define make_venv
if ! $(BIN)/pip --version >/dev/null 2>&1; then \
    rm -rf .venv; "$$python" -m venv .venv; \
fi
endef
