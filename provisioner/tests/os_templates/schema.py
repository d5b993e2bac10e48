"""Reads a JSON list of documents, prints the list of what is wrong with each of them.

    schema.py SCHEMA < documents.json
"""
import json
import sys

from jsonschema import Draft202012Validator

with open(sys.argv[1], encoding="utf-8") as file:
    schema = json.load(file)
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator(schema)
documents = json.load(sys.stdin)
json.dump([[error.message[:500] for error in validator.iter_errors(d)] for d in documents], sys.stdout)
