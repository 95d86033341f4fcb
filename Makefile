# Everything works from a fresh clone that has make and Python 3.11 or newer; nothing is installed outside of .venv.
#
#   make up        run Lastevent on this machine (make up ARGS="--port 9000")
#   make install   .venv with what runs Lastevent, and nothing for tests
#   make quick     the tests that start no processes, at each save: under a minute (make quick ARGS="-x")
#   make test      all tests (make test ARGS="tests/log -x")
#   make long      all tests, with searches in their long form (make long ARGS="tests/protocol")
#   make check     lint, format and types; silent when all is well
#   make chaos     break everything for five minutes, then say what was lost (make chaos ARGS="--seed 2")
#                  agents alone, 200 takeovers and what ran: .venv/bin/python -m tests.faults.agents
#   make hiccups   all tests, while their processes stand still for moments: what fails stands on time
#   make clients   clients of others, also those that compile for minutes (Rust, Kotlin), through a proxy that cuts
#   make bench     the benchmarks, twenty minutes (make bench ARGS="relay fanout --rounds 1");
#                  beside a commit, in turn (make bench ARGS="relay fanout memory first_token --against HEAD~1")
#   make setup     .venv only, with the tools for tests (the others do it when it is needed)
#   make pack      the JavaScript package as a file, build/lastevent-….tgz: a release is nothing more
#   make pack-python   the Python client alone, build/lastevent_client-….whl, which needs nothing but httpx2
#   make requirements   pin the newest dependencies that pyproject.toml allows and that are seven days old

.PHONY: setup install up quick test long check chaos hiccups clients bench pack pack-python requirements
MAKEFLAGS += --no-print-directory
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11
BIN := .venv/bin

setup: .venv/installed-dev
	@:

install: .venv/installed
	@:

up: .venv/installed
	@exec $(BIN)/lastevent up $(ARGS)

# Five processes on two cores, since many tests wait for processes of their own; whole files, since a file's tests share
# servers, browsers and databases. With .pyc files, also where they are switched off: without them each process
# compiles every test for itself.
test: .venv/installed-dev
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder $(ARGS)

# Several times as long.
long: export LASTEVENT_LONG_TESTS = 1
long: test
	@:

# What starts processes is left out by tests/rig/starts.py; the search of the protocol takes too long for it.
quick: .venv/installed-dev
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not processes" --ignore tests/protocol $(ARGS)

check: .venv/installed-dev
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "Not formatted (run $(BIN)/ruff format):"; $(BIN)/ruff format --check; }
	@$(BIN)/mypy --no-error-summary

chaos: .venv/installed-dev
	@$(BIN)/python -m tests.faults $(ARGS)

hiccups: .venv/installed-dev
	@$(BIN)/python -m tests.hiccups $(ARGS)

clients: .venv/installed-dev
	@$(BIN)/python -m tests.clients $(ARGS)

bench: .venv/installed-dev
	@$(BIN)/python -m bench $(ARGS)

pack: into = build
pack:
	@mkdir -p $(into)
	@echo "$(into)/$$(npm pack ./clients/js --pack-destination $(into) --ignore-scripts --loglevel=error)"

# From a copy: setuptools writes beside what it builds.
pack-python: into = build
pack-python: .venv/installed-dev
	@mkdir -p $(into)
	@from=$$(mktemp -d) && trap "rm -rf $$from" EXIT && cp -R lastevent/. $$from && \
	    $(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir $(into) $$from
	@ls $(into)/lastevent_client-*.whl

# Only a set-up that went through leaves these files. What is needed to run Lastevent is 280 MB; tests need three times
# as much, and have all of it.
.venv/installed: requirements.txt pyproject.toml
	@$(call install,requirements.txt,what Lastevent needs)
	@touch $@

.venv/installed-dev: requirements-dev.txt pyproject.toml
	@$(call install,requirements-dev.txt,what Lastevent and its tests need)
	@touch .venv/installed $@

# uv, since it alone pins for every platform and Python version at once. setuptools is listed by build-system.requires
# only, where uv does not look, and pip, which installs all of it, nowhere.
#
# What was published in the last seven days is left out: a package that somebody else has taken over is mostly found and
# removed within days.
# The tests' versions first: what runs is what was tested. Frameworks last: they have environments of their own, made by
# the tests that need them (tests/frameworks/environments.py).
requirements: build/uv/bin/uv
	@build/uv/bin/python -c 'import tomllib as t; \
	    print("pip", *t.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > build/build-system.in
	@$(pin) --upgrade $(seven_days_old) --extra dev --output-file requirements-dev.txt $(of_lastevent)
	@$(pin) --constraint requirements-dev.txt --output-file requirements.txt $(of_lastevent)
	@build/uv/bin/python -c 'import tomllib as t; \
	    print(*t.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["otel"], sep="\n")' > build/otel.in
	@$(pin) --constraint requirements-dev.txt --output-file requirements-otel.txt build/otel.in
	@for pins in tests/frameworks/openai tests/frameworks/anthropic tests/clients/dialects/responses/python; do \
	    $(pin) --upgrade $(seven_days_old) --output-file $$pins.txt $$pins.in || exit 1; \
	done
	@$(pin) --upgrade $(seven_days_old) --no-deps --output-file tests/kubernetes/schemas.txt tests/kubernetes/schemas.in

pin = build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --custom-compile-command "make requirements"
of_lastevent = pyproject.toml build/build-system.in
seven_days_old = --exclude-newer \
    "$$(build/uv/bin/python -c 'import datetime as d; print(d.datetime.now(d.UTC).date() - d.timedelta(7))')"

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

# An environment whose Python has gone (an upgrade, a moved tree) is made anew, and one in which an installation broke
# off: pip fails at packages that it finds half there.
define make_venv
if [ -e .venv/installing ] || ! $(BIN)/pip --version >/dev/null 2>&1; then \
    rm -rf .venv; "$$python" -m venv .venv; \
fi
endef

# $(1): pinned packages, $(2): what they are. While pip works something is said every few seconds: it says little by
# itself, and nothing at all while it unpacks. Without build isolation, since that would fetch a setuptools that no hash
# was checked for. The loop asks whether the shell is still there, since Ctrl-C ends only what runs in the foreground.
#
# The pinned pip first: that of Python 3.11 takes more than twice the time. It compiles on one core, so it does not.
define install
$(find_python); \
echo "Installing $(2) into .venv (only when $(1) or pyproject.toml changed)"; \
began=$$(date +%s); \
( while sleep 5 && kill -0 $$$$ 2>/dev/null; do $(say_progress); done ) & \
trap "kill $$! 2>/dev/null" EXIT; \
$(make_venv) && touch .venv/installing && \
sed -n '/^pip==/,/[^\]$$/p' $(1) > .venv/pip.txt && \
$(pip_install) --quiet --require-hashes -r .venv/pip.txt && \
$(pip_install) --progress-bar off --require-hashes --no-compile -r $(1) > .venv/install.log && \
$(pip_install) -qq --no-build-isolation -e . && \
{ $(BIN)/python -m compileall -qq -j 0 .venv/lib || true; } && \
rm .venv/installing
endef

# Pinned is all that is needed, so nothing is resolved.
pip_install = $(BIN)/python -m pip install --disable-pip-version-check --no-deps

define say_progress
echo "  $$(( $$(date +%s) - began )) s:" \
    "$$(cat .venv/install.log 2>/dev/null | grep -cE '^ +(Downloading|Using cached) .*(whl|gz)') packages fetched," \
    "$$(ls -d .venv/lib/python*/site-packages/*.dist-info 2>/dev/null | wc -l) installed," \
    "$$(du -sm .venv 2>/dev/null | cut -f1) MB"
endef
