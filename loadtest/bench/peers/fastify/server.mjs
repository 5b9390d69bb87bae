// Takes the same claims as the gate, one script call for each, on one Node process: `node server.mjs`.
//
// ioredis puts the calls of one turn of the event loop into one write (auto pipelining), which is its users' way to
// get the most out of one connection.

import { readFileSync } from 'node:fs'

import Fastify from 'fastify'
import Redis from 'ioredis'

import { claimDesk } from './claims.mjs'
import { CONTRADICTION, answerOf, problem } from './refusals.mjs'

const { PEER_SURROUNDINGS, PEER_SCRIPT, PEER_PENDING_MS } = process.env
const surroundings = JSON.parse(PEER_SURROUNDINGS)
const release = surroundings.release_id.replaceAll('-', '')
const prefix = `ct:{${release}}:${surroundings.epoch}:`
const fixedKeys = [`ct:{${release}}:meta`, ...['pools', 'claims', 'people', 'accounts', 'pending'].map((name) => prefix + name)]

const redis = new Redis({ path: surroundings.redis_socket, enableAutoPipelining: true })
redis.defineCommand('claim', { lua: readFileSync(PEER_SCRIPT, 'utf8') })
// Told by the calls that fail, each to whoever waits for it.
redis.on('error', () => {})

// Who answers at the other end. The script compares it with the server on which the state was built.
let identity = ''
async function readIdentity() {
  const info = await redis.info('server', 'replication')
  const field = (name) => info.match(new RegExp(`^${name}:(.*?)\\r?$`, 'm'))[1]
  identity = `${field('run_id')}/${field('master_replid')}`
}
redis.on('ready', () => readIdentity().catch(() => {}))
await readIdentity()

const desk = claimDesk(surroundings)

async function putClaim(request, reply) {
  const order = desk.order(request.params.claim_id, request.headers.authorization, request.body)
  if (order.problem) return refuse(reply, request, order.problem)
  const ordinals = [...order.choices].sort((a, b) => a - b)
  const packedOrdinals = Buffer.allocUnsafe(2 * ordinals.length)
  ordinals.forEach((ordinal, at) => packedOrdinals.writeUInt16LE(ordinal, 2 * at))
  const keys = [...fixedKeys, ...ordinals.map((ordinal) => `${prefix}free:${ordinal}`)]
  let said
  try {
    said = await redis.claimBuffer(
      keys.length, ...keys, identity, surroundings.epoch, PEER_PENDING_MS, packedOrdinals, '', order.packed
    )
  } catch {
    return refuse(reply, request, CONTRADICTION)
  }
  // Another server than the one that was asked at the start: look again who it is.
  if (said[0] === 0x49) readIdentity().catch(() => {})
  const answer = answerOf(said, request.params.claim_id, surroundings.pool_ids)
  if (answer.problem) return refuse(reply, request, answer.problem)
  return reply.code(answer.status).send(answer.view)
}

function refuse(reply, request, told) {
  reply.code(told.status).type('application/problem+json')
  return reply.send({ ...told, request_id: request.id })
}

const id = { type: 'string', format: 'uuid' }
const text = { type: 'string' }
const bookingSchema = {
  type: 'object',
  properties: {
    person: text,
    pool: text,
    status: text,
    place_no: { type: ['integer', 'null'] },
    position: { type: ['integer', 'null'] },
  },
}
// Every member by name: the serializer that Fastify makes of it writes those fastest.
const problemSchema = {
  type: 'object',
  properties: {
    type: text,
    title: text,
    status: { type: 'integer' },
    detail: text,
    code: text,
    retryable: { type: 'boolean' },
    request_id: text,
    final: { type: 'boolean' },
    retry_after_ms: { type: 'integer' },
    opens_at: text,
    server_time: text,
    claim: text,
    booking: bookingSchema,
    limit: { type: 'object', properties: { of: text } },
  },
}
const claimSchema = {
  params: { type: 'object', properties: { claim_id: id } },
  body: {
    type: 'object',
    required: ['release', 'people', 'choices'],
    additionalProperties: false,
    properties: {
      release: id,
      people: { type: 'array', items: id, minItems: 1, maxItems: 5, uniqueItems: true },
      choices: { type: 'array', items: id, minItems: 1, maxItems: 10, uniqueItems: true },
      together: { type: 'boolean', default: true },
      waitlist: { type: 'boolean', default: false },
    },
  },
  response: {
    '2xx': {
      type: 'object',
      properties: {
        claim: text,
        state: text,
        seq: { type: 'integer' },
        bookings: { type: 'array', items: bookingSchema },
        decided_at: text,
      },
    },
    '4xx': problemSchema,
    '5xx': problemSchema,
  },
}

const server = Fastify({
  logger: false,
  // A field that nobody knows is a mistake to be told of, not to be dropped; a number is no string.
  ajv: { customOptions: { removeAdditional: false, coerceTypes: false } },
})
server.put('/v1/claims/:claim_id', { schema: claimSchema, handler: putClaim })
server.setErrorHandler((error, request, reply) => {
  if (error.validation) {
    return refuse(reply, request, problem(422, 'validation_failed', 'The request has a wrong field', error.message))
  }
  const status = error.statusCode ?? 500
  return refuse(reply, request, problem(status, status < 500 ? 'bad_request' : 'internal_error', error.message))
})
await server.listen({ host: '127.0.0.1', port: surroundings.port, backlog: 16384 })
