"""What gives back what it is given, on BentoML, as its documentation shows a service."""

import bentoml


@bentoml.service(workers=1, logging={"access": {"enabled": False}})  # type: ignore[misc] # in an environment of its own
class Echo:
    """One call, one step."""

    @bentoml.api  # type: ignore[misc]
    def predict(self, x: list[int]) -> list[int]:
        """What came."""
        return x
