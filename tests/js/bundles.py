"""Programs for a page or a server, in one file as bundlers make it."""

from pathlib import Path

from tests.js.packages import output


def bundled(js: Path, program: str, *options: str, mode: str = "development") -> bytes:
    """`program`: a file in the folder `js`. React has its checks and StrictMode in the mode `development` alone."""
    command = ["node", "node_modules/esbuild/bin/esbuild", program, "--bundle", "--jsx=automatic", "--format=esm"]
    return output([*command, f'--define:process.env.NODE_ENV="{mode}"', "--log-level=warning", *options], js).encode()
