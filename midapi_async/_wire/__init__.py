"""The wire: JSON, tokens, records, request bodies, the rules of the protocol, HTTP."""
