"""What the openai client makes of a server of the bundled Llama; the server's address is the argument."""
import concurrent.futures
import sys

import openai

from refusals import refused

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0, timeout=60)
model = client.models.list().data[0].id
assert client.models.retrieve(model).id == model

one = client.completions.create(model=model, prompt="Once", max_tokens=12, temperature=0)
assert one.choices[0].finish_reason == "length", one
assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (4, 12), one
text = one.choices[0].text
assert len(text) == 12

pieces = list(client.completions.create(model=model, prompt="Once", max_tokens=12, temperature=0, stream=True,
                                        stream_options={"include_usage": True}))
assert pieces[-1].usage.completion_tokens == 12 and not pieces[-1].choices
assert len(pieces) > 3
assert "".join(p.choices[0].text for p in pieces[:-1]) == text
assert pieces[-2].choices[0].finish_reason == "length"

stop = text[4:6]
stopped = client.completions.create(model=model, prompt="Once", max_tokens=12, temperature=0, stop=[stop])
assert stopped.choices[0].text == text[:text.index(stop)], stopped
assert stopped.choices[0].finish_reason == "stop"

echoed = client.completions.create(model=model, prompt=["Once", "On"], max_tokens=2, temperature=0, echo=True)
assert [c.text[:4] for c in echoed.choices][0] == "Once" and echoed.choices[1].text.startswith("On")

told = client.completions.create(model=model, prompt="Once", max_tokens=3, temperature=0, logprobs=2)
logprobs = told.choices[0].logprobs
assert "".join(logprobs.tokens) == text[:3] and logprobs.text_offset == [0, 1, 2]
for token, p, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
    assert p <= 0 and len(top) == 2 and abs(max(top.values()) - p) < 1e-9 and token in top

seeded = [client.completions.create(model=model, prompt="Once", max_tokens=20, temperature=1.0, seed=s, n=2) for s in (1, 1, 3)]
texts = [[c.text for c in s.choices] for s in seeded]
assert texts[0] == texts[1] != texts[2] and texts[0][0] != texts[0][1], texts
free = {client.completions.create(model=model, prompt="Once", max_tokens=20, temperature=1.0).choices[0].text for _ in range(3)}
assert len(free) > 1, free

messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
chat = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3)
choice = chat.choices[0]
assert choice.message.role == "assistant" and len(choice.message.content) == 8
assert chat.usage.prompt_tokens == len("system: be kind|user: Hi|")
assert [t.token for t in choice.logprobs.content] == list(choice.message.content)
assert all(len(t.top_logprobs) == 3 and t.top_logprobs[0].logprob == t.logprob for t in choice.logprobs.content)
with client.chat.completions.create(model=model, messages=messages, max_completion_tokens=8, temperature=0, stream=True) as stream:
    pieces = list(stream)
assert pieces[0].choices[0].delta.role == "assistant"
assert "".join(p.choices[0].delta.content or "" for p in pieces) == choice.message.content
assert pieces[-1].choices[0].finish_reason == "length"

for call, error, what in [
    (lambda: client.completions.create(model="other", prompt="a"), openai.NotFoundError, "does not exist"),
    (lambda: client.completions.create(model=model, prompt="a" * 200), openai.BadRequestError, "context holds 128"),
    (lambda: client.chat.completions.create(model=model, messages=[]), openai.BadRequestError, "messages"),
    (lambda: client.chat.completions.create(model=model, messages=messages, temperature=-1), openai.BadRequestError, "temperature"),
    (lambda: client.embeddings.create(model=model, input="a"), openai.BadRequestError, "no embeddings"),
    (lambda: client.completions.create(model=model, prompt="a", n=20), openai.BadRequestError, "20 texts"),
]:
    refused(call, error, what)

# More at a time than the server takes: they are refused, and answered once there is room.
patient = client.with_options(max_retries=20)
ask = lambda n: patient.completions.create(model=model, prompt="Once", max_tokens=100, temperature=0).choices[0].text
with concurrent.futures.ThreadPoolExecutor(24) as pool:
    texts = set(pool.map(ask, range(24)))
assert len(texts) == 1, texts

# A client that leaves in the middle of a text.
stream = client.completions.create(model=model, prompt="Once", max_tokens=120, stream=True)
next(iter(stream))
stream.close()
