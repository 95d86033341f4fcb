"""The example of the package's README, as it stands but for the server's address."""

import re
from pathlib import Path

import pytest

from tests.js.packages import PACKAGE, output, runtime
from tests.rig.deployment import HTTP, Deployment


@pytest.mark.parametrize("name", ["node", "deno", "bun"])
def test_the_example_shows_the_answer(js: Path, deployment: Deployment, name: str) -> None:
    [example] = re.findall(r"^```js\n(.*?)^```$", (PACKAGE / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert example.count("http://127.0.0.1:8000") == 1
    (js / "readme.mjs").write_text(example.replace("http://127.0.0.1:8000", deployment.url))
    lines = output([*runtime(name, js), "readme.mjs"], js).splitlines()
    sid = HTTP.get(f"{deployment.url}/v1/streams?limit=1").json()["streams"][0]["id"]
    text = HTTP.get(f"{deployment.url}/v1/streams/{sid}/text").text
    assert text
    assert "\n".join(lines).endswith(f"ended done {len(text)}\n{text}")
    # Listeners are told once a frame: the first state that they see may be that of a connection that is open already.
    lengths = [int(state.split()[-1]) for state in lines[: -len(text.splitlines())]]
    assert len(set(lengths)) > 2
    assert lengths == sorted(lengths)
