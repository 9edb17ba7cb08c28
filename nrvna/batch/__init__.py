"""Files of the format that OpenAI's Batch API and vLLM's run-batch take: lines become jobs, and answers lines.

    in.jsonl ──▶ lines ──▶ request (chat, embedding) ──▶ queueing ──▶ jobs, and the ledger of which line is which job
    ledger ──▶ outcome of each line (response) ──▶ output ──▶ out.jsonl, out_errors.jsonl

``wrk`` and ``flw`` call :func:`nrvna.batch.queueing.queue_batch` and :func:`nrvna.batch.output.write_batch`.
"""
