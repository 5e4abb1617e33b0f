"""The serving side of Leben Mesh: Ray Serve applications that take, charge and answer calls.

The rooms, from the top floor to the ground: cli; mesh; replica; isolation; treasury, execution, control; cluster,
telemetry; protocol, catalogue, config; device, tensors; errors. A room imports only rooms on floors below it, and
`channels` and `dapps`, which do not know this package. `docs/one-request.md` follows one call downward.
"""
