"""The JavaScript package (clients/js) as its users have it: packed by npm, installed beside React, marked and the rest.

Programs that run in Node, Deno, Bun or a page stand in npm/, where their packages are.
"""
