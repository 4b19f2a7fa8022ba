"""The embedded AWS: ministack in an environment of its own, with what Holdfast's stacks need and it lacks.

`process.Emulator` starts and stops it, `deploy.bootstrap_and_deploy` runs the real CDK command line against it.
`server` and `extension` run inside the emulator's own environment only.
"""
