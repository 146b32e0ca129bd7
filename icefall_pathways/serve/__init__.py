"""One server process for all languages of a model: websockets, HTTP and a web page.

`batcher` runs the chunks of all streams in batches on one thread, `streams` connects it to asyncio, and `websocket`,
`sherpa` and `http` implement the protocols.
"""
