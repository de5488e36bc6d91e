import { queueSuite } from './queue-suite.js';

queueSuite('redis');
