"""What tests of several rooms stand on: deployments of real processes, a proxy to cut, a way on which batches of
appends are broken, Chromium, npm and what else is kept in build/, leaked keys, what memory a part of a test takes, a
server that answers with the bytes it is given."""
