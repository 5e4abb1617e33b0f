# pragma version 0.4.3
# pragma evm-version cancun
"""
@title Multicall
@notice The one function of Multicall3 that the stock facilitator reads through; for tests.
"""

struct Call:
    target: address
    data: Bytes[2048]

struct Result:
    success: bool
    data: Bytes[1024]


@external
def tryAggregate(required: bool, calls: DynArray[Call, 8]) -> DynArray[Result, 8]:
    results: DynArray[Result, 8] = []
    for one: Call in calls:
        success: bool = False
        data: Bytes[1024] = b""
        success, data = raw_call(one.target, one.data, max_outsize=1024, revert_on_failure=False)
        assert success or not required
        results.append(Result(success=success, data=data))
    return results
