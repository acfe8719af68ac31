"""The strict layer of an HTTP/1 proxy, without IO: bytes to meaning and meaning to bytes, in the order that a request meets it.

`head` finds where a head ends and reads it, a request's or an answer's; what has two readings is refused. `fields` says which
names mean something to a proxy and reads the lines that have them; `opinion` asks llhttp whether it reads the same. `target` is
where a request goes, in one spelling.
`framing` says where a body ends, takes bodies apart and puts chunks together. `forward` writes heads anew: nothing is passed on
as it came.
"""
