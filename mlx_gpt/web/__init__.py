"""What every HTTP interface of mlxgpt needs: the server, the access rules, and errors as JSON."""
