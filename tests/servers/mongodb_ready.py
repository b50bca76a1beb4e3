"""Succeeds once the mongod on port argv[1] is the process argv[2] and the primary of its replica set."""

import sys

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

ALREADY_INITIALIZED = 23

port, process = int(sys.argv[1]), int(sys.argv[2])
members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
try:
    client = MongoClient("127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=500)
    admin = client.admin
    if admin.command("serverStatus")["pid"] != process:
        sys.exit("another server answers on this port")
    try:
        admin.command("replSetInitiate", {"_id": "rs0", "members": members})
    except OperationFailure as error:
        if error.code != ALREADY_INITIALIZED:
            raise
    sys.exit(0 if admin.command("hello")["isWritablePrimary"] else "not primary yet")
except PyMongoError as error:
    sys.exit(f"not ready: {error}")
