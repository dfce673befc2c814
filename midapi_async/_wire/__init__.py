"""The wire: JSON, records, request bodies, the rules of the protocol, the HTTP session."""
