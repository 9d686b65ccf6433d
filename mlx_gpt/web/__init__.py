"""What every HTTP surface shares: access rules, errors as JSON, the server."""
