"""Programs for a page or a server, in one file as bundlers make it."""

import subprocess
from pathlib import Path

LIMIT_S = 60


def bundled(js: Path, program: str, *options: str, mode: str = "development") -> bytes:
    """`program`: a file in the folder `js`. React has its checks and StrictMode in the mode `development` alone."""
    command = [
        *("node", "node_modules/esbuild/bin/esbuild", program, "--bundle", "--jsx=automatic", "--format=esm"),
        *(f'--define:process.env.NODE_ENV="{mode}"', "--log-level=warning", *options),
    ]
    ran = subprocess.run(command, cwd=js, timeout=LIMIT_S, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout
