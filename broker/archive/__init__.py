"""The archive: finished streams in a database (SQLite or PostgreSQL), sealed, with the record of who saw them.

Workers write it (worker/archiving/), one at a time. Servers only read it: a database role with read access is enough.

schema.py    the tables, on one screen            seal.py      what makes a change visible (docs/AUDIT.md)
database.py  engines, and the schema's migration  packing.py   how a log is stored
reader.py    find, list                           signing.py   the key that seals, and the keys that check
writer.py    add, erase: each with its seal       heads.py     the head of each chain, outside of the database
audit.py     everything against its seals         export.py    an exported file against its seal
stamps.py    time stamps of the heads, by an authority
copies.py    what Redis still has of it, too      setup.py     what the settings say about all this
"""
