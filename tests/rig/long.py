"""Whether searches run in their long form: with LASTEVENT_LONG_TESTS=1, which `make long` sets."""

import os

LONG = bool(os.environ.get("LASTEVENT_LONG_TESTS"))
