"""nrvna: local inference as durable jobs.

``wrk`` queues a prompt, ``nrvnad`` answers it with a local GGUF model, ``flw`` collects the answer.
"""

__version__ = "0.1.0"
