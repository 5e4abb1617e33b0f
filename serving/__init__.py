"""The serving side of Leben Mesh: Ray Serve applications, the HTTP door, the paywall, the batcher and the runner.

Read `serving/app.py` first: it builds everything. One call then goes `door.py` → `paywall.py` → `channels/meter.py` →
`batcher.py` → `runner.py` and back. May import `channels` and `dapps`; neither knows this package.
"""
