"""What tests of several rooms stand on: deployments of real processes, a proxy to cut, Chromium, npm, leaked keys,
what memory a part of a test takes."""
