"""A worker that buys the pictures of a job queue; docs/postgresql.md tells what it shows.

The jobs of procrastinate and our journal are in one PostgreSQL database. A job runs again when its
worker was killed, or when an error may pass; its picture is bought once, because the key is the id
of the job. Any number of workers may run, on any number of machines.

    pip install "./midapi_async[postgres]" procrastinate "psycopg[binary]"
    export DATABASE_URL=postgresql://pictures@db.example.org/pictures MIDAPI_API_KEY=…
    python procrastinate_worker.py setup  # once: makes the tables of the queue
    python procrastinate_worker.py order "a red fox in the snow"
    python procrastinate_worker.py work  # until Ctrl-C; files go into pictures/

procrastinate warns of an app in the main module, because the names of tasks might then differ
between programs. Here each task has a name of its own, so the warning can be ignored.
"""

import asyncio
import os
import sys

from procrastinate import App, BaseRetryStrategy, JobContext, PsycopgConnector, RetryDecision
from procrastinate.jobs import Job

from midapi_async import (
    InvalidRequestError,
    MidAPIClient,
    MidAPIError,
    SubmissionUnknown,
    TaskError,
)

DATABASE = os.environ["DATABASE_URL"]
app = App(connector=PsycopgConnector(conninfo=DATABASE))


class IfItMayPass(BaseRetryStrategy):
    """Run a job again after an error that may pass: no network, maintenance, a timeout."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        # These are the last word on this key. An unknown submission waits for your decision.
        is_final = isinstance(exception, TaskError | SubmissionUnknown | InvalidRequestError)
        if is_final or not isinstance(exception, MidAPIError) or job.attempts >= 100:
            return None
        return RetryDecision(retry_in={"seconds": 30})


@app.task(name="picture", pass_context=True, retry=IfItMayPass())
async def picture(context: JobContext, prompt: str) -> None:
    client: MidAPIClient = context.additional_context["client"]
    details = await client.generate_and_wait(prompt, key=f"job-{context.job.id}")
    files = await client.download(details, "pictures")
    print(f"job {context.job.id}: {len(files)} files", flush=True)


@app.periodic(cron="* * * * *")
@app.task(name="retry_stalled", queueing_lock="retry_stalled")
async def retry_stalled(timestamp: int) -> None:  # noqa: ARG001 - the minute that has begun
    """Run the jobs of workers again that have shown no sign of life for 30 s."""
    for job in await app.job_manager.get_stalled_jobs():
        await app.job_manager.retry_job(job)


async def work() -> None:
    async with app.open_async(), MidAPIClient(journal=DATABASE) as client:
        await app.run_worker_async(additional_context={"client": client}, concurrency=50)


async def order(prompt: str) -> None:
    async with app.open_async():
        print(f"job {await picture.defer_async(prompt=prompt)}")


async def setup() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["setup"]:
            asyncio.run(setup())
        case ["order", prompt]:
            asyncio.run(order(prompt))
        case ["work"]:
            asyncio.run(work())
        case _:
            sys.exit(__doc__)
