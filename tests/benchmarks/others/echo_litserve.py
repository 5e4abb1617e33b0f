"""What gives back what it is given, on LitServe, as its documentation shows a server."""

import sys

import litserve


class Echo(litserve.LitAPI):  # type: ignore[misc] # in an environment of its own
    """One call, one step in the worker."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def decode_request(self, request: dict) -> list:
        """The numbers."""
        return request["X"]

    def predict(self, x: list) -> list:
        """What came."""
        return x

    def encode_response(self, output: list) -> dict:
        """The numbers."""
        return {"Y": output}


if __name__ == "__main__":
    server = litserve.LitServer(Echo(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="error"
    )
