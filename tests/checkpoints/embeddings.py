"""What the openai client makes of a server of the bundled BERT; the server's address is the argument."""
import concurrent.futures
import math
import sys

import openai

from refusals import refused

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0, timeout=60)
model = client.models.list().data[0].id


def vectors(**request):
    return [d.embedding for d in client.embeddings.create(model=model, **request).data]


def near(a, b):
    return len(a) == len(b) and all(abs(x - y) < 1e-6 for x, y in zip(a, b))


# The client asks for base64 unless it is told otherwise.
one = client.embeddings.create(model=model, input="Once upon a time")
assert (one.object, one.model, one.data[0].object, one.data[0].index) == ("list", model, "embedding", 0), one
assert (one.usage.prompt_tokens, one.usage.total_tokens) == (16, 16), one.usage
once = one.data[0].embedding
assert len(once) == 64 and abs(math.hypot(*once) - 1) < 1e-5
assert near(vectors(input="Once upon a time", encoding_format="float")[0], once)

texts = ["Once upon a time", "x", "the quick brown fox jumps over the lazy dog"]
many = client.embeddings.create(model=model, input=texts)
assert [d.index for d in many.data] == [0, 1, 2] and many.usage.prompt_tokens == sum(map(len, texts))
assert near(many.data[0].embedding, once)
tokens = [list(t.encode()) for t in texts]
assert all(near(a, b.embedding) for a, b in zip(vectors(input=tokens), many.data))
assert near(vectors(input=tokens[2])[0], many.data[2].embedding)

short = vectors(input="Once upon a time", dimensions=8)[0]
length = math.hypot(*once[:8])
assert near(short, [v / length for v in once[:8]])

for request, what in [
    (dict(input=""), "is empty"),
    (dict(input=[]), "empty list"),
    (dict(input=["a", ""]), "input 1: the text is empty"),
    (dict(input="a" * 129), "at most 128"),
    (dict(input=[1] * 129), "at most 128"),
    (dict(input=[[1], [128]]), "no token 128"),
    (dict(input=["a"] * 2049), "at most 2048"),
    (dict(input=3), "`input` must be"),
    (dict(input=["a", 3]), "`input` must be"),
    (dict(input="a", dimensions=65), "from 1 to 64"),
    (dict(input="a", encoding_format="hex"), "`encoding_format`"),
]:
    refused(lambda: client.embeddings.create(model=model, **request), openai.BadRequestError, what)
for call, error, what in [
    (lambda: client.embeddings.create(model="other", input="a"), openai.NotFoundError, "does not exist"),
    (lambda: client.completions.create(model=model, prompt="a"), openai.BadRequestError, "writes no text"),
    (lambda: client.chat.completions.create(model=model, messages=[{"role": "user", "content": "a"}]), openai.BadRequestError,
     "gives embeddings"),
]:
    refused(call, error, what)

# Many at a time, and more texts than the server takes: those are refused for now, and answered once there is room.
patient = client.with_options(max_retries=20)
ask = lambda n: patient.embeddings.create(model=model, input=texts * 10).data
with concurrent.futures.ThreadPoolExecutor(24) as pool:
    for data in pool.map(ask, range(24)):
        assert all(near(d.embedding, many.data[d.index % 3].embedding) for d in data) and len(data) == 30
