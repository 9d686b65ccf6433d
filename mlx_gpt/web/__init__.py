"""The HTTP server, access rules, and errors as JSON, for every HTTP interface of mlxgpt."""
