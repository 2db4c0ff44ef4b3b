"""A server of HTTP, for the outputs that answer requests.

`_listening` listens while an output runs, on the sockets of `_listeners`. `_server` has the
connections, and answers requests with the output's resources. `_connection` speaks HTTP,
`_negotiation` reads what clients accept, `_body` joins and compresses the blocks of an
answer, and `_basic_auth` checks passwords.
"""
