"""What `kb up` keeps running: services as processes, watched, started again, and stopped without a trace.

`stack` says which services there are; `service` what one is; `supervisor` keeps them running; `guardian` ends them when
`kb up` itself was killed. Nothing here knows what the services do, and nothing here prints.
"""
