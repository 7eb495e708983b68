// The OpenID provider of the tests: oidc-provider, on loopback, with clients and users of its own.
//
// Prints its issuer as the first line once it serves. Environment: PORT (0: a free one), CLOCK_OFFSET (seconds that its
// clock is ahead), RFC8414 (metadata where that alone looks). Beside the provider's own paths: whoever comes to log in is
// whom the header `x-test-user` names, else alice, and consents to everything; `nobody` refuses. GET /test/counts says how
// often each path was asked for.

import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import { Provider } from 'oidc-provider';

const offset = Number(process.env.CLOCK_OFFSET ?? 0) * 1000;
const now = Date.now;
Date.now = () => now() + offset;

// Where OpenID Connect Discovery 1.0 and RFC 8414 look; with RFC8414 in the environment it has its metadata there alone.
const OIDC_METADATA = '/.well-known/openid-configuration';
const OAUTH_METADATA = '/.well-known/oauth-authorization-server';

const users = {
  alice: { email: 'alice@anl.example', email_verified: true, name: 'Alice', groups: ['beamline', 'staff'] },
  bob: { email: 'bob@ornl.example', email_verified: true, name: 'Bob', groups: ['guests'] },
  mallory: { email: 'alice@anl.example', email_verified: false, name: 'Mallory', groups: [] },
};
const loopback = ['http://127.0.0.1/callback', 'http://localhost/callback', 'http://[::1]/callback', 'http://127.0.0.1/', 'http://localhost/'];
const secret = { client_secret: 'the secret of the tests', response_types: [], redirect_uris: [] };
const machine = { ...secret, grant_types: ['client_credentials'] };
const person = {
  token_endpoint_auth_method: 'none',
  application_type: 'native',
  grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
  redirect_uris: loopback,
};
const seconds = (client, usual) => (client?.clientId.startsWith('short') ? 3 : usual);
const key = (kind, options) => generateKeyPairSync(kind, options).privateKey.export({ format: 'jwk' });
const counts = {};

function configuration() {
  return {
    clients: [
      { client_id: 'gateway', ...machine },
      { client_id: 'robot', ...machine },
      { client_id: 'short-robot', ...machine },
      { client_id: 's2uc', ...person },
      { client_id: 'short-s2uc', ...person },
    ],
    // New ones at each start: a restart rotates them.
    jwks: {
      keys: [
        { ...key('ec', { namedCurve: 'P-256' }), use: 'sig', alg: 'ES256', kid: `ec-${process.pid}` },
        { ...key('rsa', { modulusLength: 2048 }), use: 'sig', alg: 'RS256', kid: `rsa-${process.pid}` },
      ],
    },
    cookies: { keys: ['of the tests alone'] },
    scopes: ['openid', 'offline_access', 'scistream', 'other', 'https://auth.globus.org/scopes/gateway/scistream'],
    claims: { openid: ['sub', 'email', 'email_verified', 'name', 'groups'] },
    features: {
      clientCredentials: { enabled: true },
      deviceFlow: { enabled: true },
      devInteractions: { enabled: false },
      introspection: { enabled: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => undefined,
        useGrantedResource: () => true,
        // A resource with jwt in its name gets JWTs; rs256 in it chooses the other key.
        getResourceServerInfo: (ctx, resource, client) => ({
          scope: 'scistream other',
          audience: resource,
          accessTokenTTL: seconds(client, 600),
          accessTokenFormat: resource.includes('jwt') ? 'jwt' : 'opaque',
          jwt: { sign: { alg: resource.includes('rs256') ? 'RS256' : 'ES256' } },
        }),
      },
    },
    findAccount: (ctx, id) => (id in users ? { accountId: id, claims: () => ({ sub: id, ...users[id] }) } : undefined),
    extraTokenClaims: (ctx, token) => users[token.accountId],
    interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
    issueRefreshToken: (ctx, client, code) => client.grantTypeAllowed('refresh_token') && code.scopes.has('offline_access'),
    rotateRefreshToken: true,
    pkce: { required: () => true, methods: ['S256'] },
    ttl: {
      AccessToken: (ctx, token, client) => seconds(client, 600),
      ClientCredentials: (ctx, token, client) => seconds(client, 600),
      AuthorizationCode: 60,
      DeviceCode: 60,
      Grant: 3600,
      IdToken: 600,
      Interaction: 60,
      RefreshToken: 3600,
      Session: 3600,
    },
    renderError: (ctx, out) => {
      ctx.type = 'text/plain';
      ctx.body = `${out.error}: ${out.error_description ?? ''}`;
    },
  };
}

async function interact(provider, ctx) {
  const { params, prompt, grantId } = await provider.interactionDetails(ctx.req, ctx.res);
  const accountId = ctx.get('x-test-user') || 'alice';
  if (accountId === 'nobody') {
    return provider.interactionFinished(ctx.req, ctx.res, { error: 'access_denied', error_description: 'the user said no' });
  }
  if (prompt.name === 'login') {
    return provider.interactionFinished(ctx.req, ctx.res, { login: { accountId } });
  }
  const grant = grantId
    ? await provider.Grant.find(grantId)
    : new provider.Grant({ accountId, clientId: params.client_id });
  const { missingOIDCScope = [], missingOIDCClaims = [], missingResourceScopes = {} } = prompt.details;
  grant.addOIDCScope(missingOIDCScope.join(' '));
  grant.addOIDCClaims(missingOIDCClaims);
  Object.entries(missingResourceScopes).forEach(([resource, scopes]) => grant.addResourceScope(resource, scopes.join(' ')));
  return provider.interactionFinished(ctx.req, ctx.res, { consent: { grantId: await grant.save() } }, { mergeWithLastSubmission: true });
}

const server = createServer();
server.listen(Number(process.env.PORT ?? 0), '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, configuration());
  provider.use(async (ctx, next) => {
    counts[ctx.path] = (counts[ctx.path] ?? 0) + 1;
    if (process.env.RFC8414 && ctx.path === OIDC_METADATA) {
      ctx.body = '<p>A page for people, as some providers show wherever they have nothing else.</p>';
    } else if (ctx.path === '/test/counts') {
      ctx.body = counts;
    } else if (ctx.path.startsWith('/interaction/')) {
      ctx.respond = false;
      await interact(provider, ctx);
    } else {
      if (process.env.RFC8414 && ctx.path === OAUTH_METADATA) {
        ctx.path = OIDC_METADATA;
      }
      await next();
    }
  });
  server.on('request', provider.callback());
  console.log(issuer);
});
