"""Imported by the fork server only: what every server process would otherwise make anew for seconds."""

from tests.contract.conftest import shared_tokenizer

shared_tokenizer()
