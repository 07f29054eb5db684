"""The bus on a laptop: Pub/Sub, Cloud Tasks and Cloud Scheduler in one process, for the official clients unchanged.

`python -m local.bus --help` starts it; `broker` is the heart, `pubsub`, `http` and `tasks` are its doors.

What it does not do, and says so instead of pretending: ordering keys are accepted and delivered back, but order is not
kept across redeliveries; exactly-once delivery, snapshots, seek and schemas are refused. One deliberate difference to
the cloud: a push endpoint that refuses the connection has received nothing, so this counts as no delivery attempt (a
laptop's function that is being edited for ten minutes must not send its documents to the dead letters).
"""
