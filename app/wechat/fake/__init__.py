"""A WeChat server for one mini-program: the real one's paths, fields, error codes and manners, without the phone.

Serves the embedded mode, rehearsals and tests. Like the real one it answers 200 whatever happened, calls the JSON of
`jscode2session` text/plain, uses a real code up, and keeps one token valid for each app.

What a code does is in its name:

| code | answer |
|---|---|
| `demo-<name>` | signs in the openid `demo-<name>`, as often as one likes |
| `once-<name>` | signs in the openid `once-<name>`; the second time 40163, as real codes do |
| `busy-<n>-<name>` | -1 (busy) n times, then signs in the openid `busy-<n>-<name>` |
| `slow-<ms>` | signs in the openid `slow-<ms>` after so many milliseconds, ten seconds at most |
| `fail-<errcode>` | this errcode |
| anything else | 40029 |

`<name>` is 1 to 64 of `A-Z a-z 0-9 . _ -`. Messages follow the same names: to `fail-<errcode>` they fail with it.
"""
