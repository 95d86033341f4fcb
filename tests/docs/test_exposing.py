"""What README.md, and of docs/ OPERATIONS.md, API.md and CLIENTS.md, show of keys, tokens, limits and issuers is what
happens: their commands run here as they stand, against a `lastevent up` of their own, since the first key closes it.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.docs.up import ROOT, Up, blocks_of, running_up
from tests.rig.deployment import HTTP, wait_until

API = blocks_of((ROOT / "docs" / "API.md").read_text(), "sh")
OPERATIONS = blocks_of((ROOT / "docs" / "OPERATIONS.md").read_text(), "sh")
README = blocks_of((ROOT / "README.md").read_text(), "sh")
CLIENTS = blocks_of((ROOT / "docs" / "CLIENTS.md").read_text(), "sh")


def the_one(blocks: list[str], words: str) -> str:
    [found] = [block for block in blocks if words in block]
    return found


class Exposed:
    """`answer`: what the first commands printed. What a block sets is there for the next."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self.answer = self.sh(the_one(README, "/v1/tokens"))
        self.revoked_at = time.time()

    def sh(self, block: str) -> str:
        kept = "declare -p KEY ID TOKEN LEAKED > kept 2> /dev/null"
        return self.up.sh(f"touch kept; source ./kept; unset LASTEVENT_API_KEY\n{block}\n{kept}")

    def follow(self, token: str) -> str:
        return self.sh(f"curl -sN -m 20 localhost:8000/v1/streams/$ID/events -H 'Authorization: Bearer '{token}")


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str, str], str]) -> Iterator[Exposed]:
    require("curl", "curl")
    require("openssl", "openssl")
    folder = tmp_path_factory.mktemp("exposed")
    subprocess.run(["bash", "-ec", the_one(API, "[issuer.login]")], cwd=folder, check=True, stderr=subprocess.DEVNULL)
    with running_up(folder, LASTEVENT_ISSUERS="issuers.toml") as up:
        yield Exposed(up)


def test_a_key_starts_a_token_follows_and_when_it_is_revoked_it_opens_nothing(exposed: Exposed) -> None:
    assert "event: done" in exposed.answer
    assert '"token_revoked"' in exposed.follow("$TOKEN")
    assert re.search(r"^shop +60 +500$", exposed.answer, re.MULTILINE), "its limits"


def test_who_has_no_key_is_not_let_in_any_more(exposed: Exposed) -> None:
    url = f"http://localhost:{exposed.up.port}/v1/streams"
    wait_until(lambda: HTTP.get(url).status_code == 401, "the server has heard of its first key")


def test_a_token_of_an_issuer_of_one_s_own_opens_the_streams_of_its_user(exposed: Exposed) -> None:
    wait_until(lambda: time.time() > exposed.revoked_at + 1, "a second begins that is after the revocation")
    assert "event: done" in exposed.sh(the_one(API, "login.pem -rawin"))
    assert "event: done" in exposed.sh(the_one(API, "/v1/tokens/cookie")), "in a cookie too"


def test_the_token_that_a_page_is_given_follows_and_cancels(exposed: Exposed) -> None:
    said = exposed.sh(the_one(CLIENTS, "/v1/tokens"))
    token = json.loads(said)["token"]
    assert "event: done" in exposed.follow(token)
    cancel = f"curl -s -X POST localhost:8000/v1/streams/$ID/cancel -H 'Authorization: Bearer {token}'"
    assert json.loads(exposed.sh(cancel))["already"] is True


def test_what_was_done_with_a_key_that_leaked_is_listed_and_it_is_let_in_no_more(exposed: Exposed) -> None:
    another = exposed.sh(f"LEAKED=$KEY\n{the_one(OPERATIONS, 'keys revoke $LEAKED')}").strip()
    ask = "curl -s localhost:8000/v1/streams -H 'Authorization: Bearer '$LEAKED"
    wait_until(lambda: '"unauthorized"' in exposed.sh(ask), "the server has heard that the key is revoked")
    looked = exposed.sh(f"{the_one(OPERATIONS, '--who key:')}\nKEY={another}")
    assert all(what in looked for what in ("created", "minted", "revoked", "user ann"))


def test_a_person_is_erased(exposed: Exposed) -> None:
    assert "erased" in exposed.sh(the_one(OPERATIONS, "lastevent erase --user"))
    gone = exposed.sh("curl -s localhost:8000/v1/streams/$ID/text -H 'Authorization: Bearer '$KEY")
    assert '"stream_expired"' in gone
