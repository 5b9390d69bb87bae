// Reads passes and packs claims as the gate does: see passes.py, orders.py and admission.py in app/booking/gate.

import { createHmac, hash, timingSafeEqual } from 'node:crypto'

import { Unpackr } from 'msgpackr'

import { problem } from './refusals.mjs'

const SIGNATURE_BYTES = 32
const FINGERPRINT_BYTES = 8
// id, fingerprint, account, when the pass expires (ms), own delay (ms), flags, people, choices
const HEAD_BYTES = 55

const NOT_AUTHENTICATED = problem(401, 'not_authenticated', 'Send the pass of this release')
const PASS_INVALID = problem(403, 'pass_invalid', 'This pass is not valid for this claim')
const NOT_ELIGIBLE = problem(403, 'not_eligible', 'One of these people may not claim one of these pools')
const UNKNOWN_POOL = problem(422, 'unknown_pool', 'One of these pools does not belong to this release')

// Milliseconds since 1970 fit into a number for some 280,000 years.
const unpackr = new Unpackr({ int64AsType: 'number', useRecords: false })

export function claimDesk(surroundings) {
  const release = idBytes(surroundings.release_id)
  const ordinalOf = new Map(surroundings.pool_ids.map((poolId, ordinal) => [poolId, ordinal]))

  // Returns what a genuine pass says, or nothing.
  function verify(text) {
    const signed = Buffer.from(text, 'base64url')
    if (signed.length <= SIGNATURE_BYTES) return undefined
    const body = signed.subarray(0, -SIGNATURE_BYTES)
    const wanted = createHmac('sha256', surroundings.pass_key).update(body).digest()
    if (!timingSafeEqual(wanted, signed.subarray(-SIGNATURE_BYTES))) return undefined
    const [version, releaseId, account, expiresMs, people] = unpackr.unpack(body)
    return version === 1 ? { releaseId, account, expiresMs, people } : undefined
  }

  // Returns the pools' ordinals and the packed claim, or the problem that stands in its way.
  function order(claimId, authorization, claim) {
    if (!authorization || authorization.slice(0, 5).toLowerCase() !== 'pass ') return { problem: NOT_AUTHENTICATED }
    const pass = verify(authorization.slice(5))
    if (!pass || !pass.releaseId.equals(release) || claim.release !== surroundings.release_id) {
      return { problem: PASS_INVALID }
    }
    const choices = []
    for (const poolId of claim.choices) {
      const ordinal = ordinalOf.get(poolId)
      if (ordinal === undefined) return { problem: UNKNOWN_POOL }
      choices.push(ordinal)
    }
    const people = []
    let delayMs = 0
    for (const personId of claim.people) {
      const person = idBytes(personId)
      const found = pass.people.find(([id]) => id.equals(person))
      if (!found || !choices.every((ordinal) => mayClaim(found[1], ordinal))) return { problem: NOT_ELIGIBLE }
      delayMs = Math.max(delayMs, found[2])
      people.push(person)
    }
    return { choices, packed: pack(claimId, claim, pass, people, choices, delayMs) }
  }

  return { order }
}

function pack(claimId, claim, pass, people, choices, delayMs) {
  const wishes = Buffer.allocUnsafe(16 * people.length + 2 * choices.length)
  people.forEach((person, at) => person.copy(wishes, 16 * at))
  choices.forEach((ordinal, at) => wishes.writeUInt16LE(ordinal, 16 * people.length + 2 * at))
  const flags = (claim.together ? 1 : 0) | (claim.waitlist ? 2 : 0)
  const head = Buffer.allocUnsafe(HEAD_BYTES)
  idBytes(claimId).copy(head, 0)
  fingerprint(pass, flags, people.length, wishes).copy(head, 16)
  pass.account.copy(head, 24)
  head.writeBigUInt64LE(BigInt(pass.expiresMs), 40)
  head.writeUInt32LE(delayMs, 48)
  head[52] = flags
  head[53] = people.length
  head[54] = choices.length
  return Buffer.concat([head, wishes])
}

// What makes two requests under one id the same. The gate takes a keyed BLAKE2b of 8 bytes, which Node has only in
// JavaScript, ten times as slow; the script only compares these, so Node's own BLAKE2b does as well.
function fingerprint(pass, flags, people, wishes) {
  const hashed = Buffer.concat([Buffer.from([flags, people]), pass.releaseId, pass.account, wishes])
  return hash('blake2b512', hashed, 'buffer').subarray(0, FINGERPRINT_BYTES)
}

function mayClaim(pools, ordinal) {
  return ((pools[ordinal >> 3] ?? 0) & (1 << (ordinal & 7))) !== 0
}

function idBytes(text) {
  return Buffer.from(text.replaceAll('-', ''), 'hex')
}
