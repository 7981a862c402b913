"""Runs the snippets that tests send, in a process whose environment points the clients to the loopback Hub.

Importing torch, diffusers and datasets once for all tests takes most of the time that the tests take.
"""

import json
import sys
import time
import traceback
import types

import huggingface_hub.utils._http as hub_http

SLEEPS = []
# Waiting between retries is counted, not done.
hub_http.time = types.SimpleNamespace(sleep=SLEEPS.append)


def main():
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        task = json.loads(line)
        namespace, answer = dict(task["variables"]), {}
        SLEEPS.clear()
        begin = time.perf_counter()
        try:
            exec(task["code"], namespace)
            answer["result"] = namespace.get("result")
        except BaseException as error:
            text = "".join(traceback.format_exception(error))
            print(text, file=sys.stderr)
            answer |= {"error": type(error).__name__, "message": str(error), "traceback": text}
        answer |= {"seconds": time.perf_counter() - begin, "slept": sum(SLEEPS)}
        sys.stderr.flush()
        print(json.dumps(answer, default=str), file=answers, flush=True)


main()
