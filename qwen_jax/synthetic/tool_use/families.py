"""28 families of tools in seven domains, in English and Chinese. Report: 3.4.

Ten are held out: one of each of six domains, and the domain of travel. A tool of an item is a
family under a random name. What a tool returns is a function of its arguments.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

# Words of a question that stand for a value; the value itself is not in the question.
CHOICES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "unit": {"celsius": ("in Celsius", "用摄氏度"), "fahrenheit": ("in Fahrenheit", "用华氏度")},
    "switch": {"on": ("Turn on", "打开"), "off": ("Turn off", "关闭")},
    "class": {"economy": ("a cheap", "便宜的"), "business": ("a comfortable", "舒适的")},
}
_DESCRIBED = {  # of parameters: kind -> English, Chinese
    "city": ("name of the city", "城市名称"),
    "thing": ("name of the thing", "物品名称"),
    "person": ("name of the person", "人名"),
    "topic": ("what it is about", "主题"),
    "date": ("day, YYYY-MM-DD", "日期，格式为YYYY-MM-DD"),
    "count": ("an integer", "整数"),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """What tools of a kind do.

    Fields:
      name: the verb; a tool's name is a made-up word and the verb.
      human, description, answer: by language; the answer has {n}, a number.
      parameters: name -> kind, of values.value or of CHOICES.
      questions: by language: two phrasings for training, and one that is held out.
    """

    domain: str
    name: str
    human: Mapping[str, str]
    description: Mapping[str, str]
    parameters: Mapping[str, str]
    questions: Mapping[str, tuple[str, ...]]
    answer: Mapping[str, str]
    held_out: bool = False

    def described_parameters(self, language: str) -> list[dict[str, Any]]:
        """Returns the parameters as a ReAct prompt has them."""
        found = []
        for name, kind in self.parameters.items():
            schema: dict[str, Any] = {"type": "integer" if kind == "count" else "string"}
            if kind in CHOICES:
                schema["enum"] = list(CHOICES[kind])
                text = {"en": "one of the listed values", "zh": "所列值之一"}[language]
            else:
                text = _DESCRIBED[kind][language == "zh"]
            found.append({"name": name, "description": text, "required": True, "schema": schema})
        return found

    def run(self, arguments: Mapping[str, Any], language: str) -> str:
        """Returns what the tool answers; equal arguments have equal answers."""
        text = repr((self.name, sorted(arguments.items())))
        number = int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) % 89 + 10
        return self.answer[language].format(n=number)


def _family(
    domain: str, name: str, parameters: str, text: str, *, held_out: bool = False
) -> Family:
    """Reads a family: human name, description, three questions and an answer, English | Chinese."""
    lines = [line.split("|") for line in text.strip().splitlines()]
    english, chinese = zip(*[(one.strip(), other.strip()) for one, other in lines], strict=True)
    both = {"en": english, "zh": chinese}
    return Family(
        domain,
        name,
        {key: found[0] for key, found in both.items()},
        {key: found[1] for key, found in both.items()},
        dict(one.split(":") for one in parameters.split()),
        {key: found[2:5] for key, found in both.items()},
        {key: found[5] for key, found in both.items()},
        held_out or domain == "travel",
    )


FAMILIES = (
    _family("weather", "forecast", "city:city date:date", """
        weather forecast | 天气预报
        Tells the weather of a city on a day. | 查询某个城市某一天的天气。
        What will the weather be in {city} on {date}? | {date}{city}的天气怎么样？
        Will it rain in {city} on {date}? | {date}{city}会下雨吗？
        I travel to {city} on {date}; what sky awaits me? | 我{date}要去{city}，那天天气如何？
        clouds, {n} percent chance of rain | 多云，降雨概率{n}%
        """),
    _family("weather", "temperature", "city:city unit:unit", """
        thermometer | 温度计
        Measures how warm it is now in a city. | 测量某个城市现在的气温。
        How warm is it now in {city}, {unit}? | 现在{city}的气温是多少？请{unit}表示。
        Give me the temperature in {city} {unit}. | 请{unit}告诉我{city}的温度。
        Is it hot in {city}? Answer {unit}. | {city}现在热不热？请{unit}回答。
        {n} degrees | {n}度
        """),
    _family("weather", "air", "city:city", """
        air quality | 空气质量
        Reports the air quality of a city. | 报告某个城市的空气质量。
        How clean is the air in {city}? | {city}的空气质量怎么样？
        Is there smog in {city}? | {city}有雾霾吗？
        Can I go running outside in {city} or is the air bad? | {city}空气差吗，能在户外跑步吗？
        index {n} | 指数{n}
        """),
    _family("weather", "sunrise", "city:city date:date", """
        sunrise times | 日出时间
        Computes when the sun rises in a city on a day. | 计算某个城市某一天的日出时间。
        When does the sun rise in {city} on {date}? | {date}{city}几点日出？
        Tell me the sunrise in {city} on {date}. | 请告诉我{date}{city}的日出时间。
        At what time does it get light in {city} on {date}? | {date}{city}什么时候天亮？
        6:{n} in the morning | 早上6点{n}分
        """, held_out=True),
    _family("numbers", "multiply", "first:count second:count", """
        multiplication | 乘法计算
        Multiplies two integers. | 计算两个整数的乘积。
        What is {first} times {second}? | {first}乘以{second}等于多少？
        Multiply {first} by {second}. | 请把{first}和{second}相乘。
        How much are {first} boxes of {second} pieces each? | {first}盒，每盒{second}个，一共多少个？
        {n} | {n}
        """),  # noqa: E501
    _family("numbers", "factors", "number:count", """
        prime factors | 质因数分解
        Finds the prime factors of an integer. | 求一个整数的质因数。
        Which primes divide {number}? | {number}有哪些质因数？
        Factor {number}. | 请分解{number}。
        Write {number} as a product of primes. | 请把{number}写成质数的乘积。
        {n} and 2 | {n}和2
        """),
    _family("numbers", "random", "highest:count", """
        random numbers | 随机数
        Picks a random integer up to a maximum. | 随机选一个不超过最大值的整数。
        Pick a random number up to {highest}. | 请随机选一个不超过{highest}的数。
        Roll a die with {highest} sides. | 请掷一个{highest}面的骰子。
        Choose any number from one to {highest} by chance. | 请在1到{highest}之间随便抽一个数。
        {n} | {n}
        """),
    _family("numbers", "roman", "number:count", """
        Roman numerals | 罗马数字
        Writes an integer in Roman numerals. | 把整数写成罗马数字。
        What is {number} in Roman numerals? | {number}的罗马数字怎么写？
        Convert {number} to Roman numerals. | 请把{number}转换成罗马数字。
        How did the Romans write {number}? | 罗马人怎么写{number}？
        X{n} | X{n}
        """, held_out=True),
    _family("calendar", "appointments", "date:date", """
        appointments | 日程查询
        Lists the user's appointments on a day. | 列出用户某一天的日程。
        What do I have to do on {date}? | 我{date}有什么安排？
        Show my appointments on {date}. | 请显示我{date}的日程。
        Am I free on {date}? | 我{date}有空吗？
        {n} appointments | {n}个日程
        """),
    _family("calendar", "invite", "person:person date:date", """
        invitations | 会议邀请
        Invites a person to a meeting on a day. | 邀请某人在某一天开会。
        Invite {person} to a meeting on {date}. | 请邀请{person}在{date}开会。
        Ask {person} to meet me on {date}. | 请约{person}{date}见面。
        I want to see {person} on {date}; send the invitation. | 我想{date}见{person}，请发邀请。
        sent, number {n} | 已发送，编号{n}
        """),
    _family("calendar", "reminder", "thing:thing date:date", """
        reminders | 提醒事项
        Reminds the user of a thing on a day. | 在某一天提醒用户某件物品。
        Remind me of the {thing} on {date}. | {date}提醒我带{thing}。
        Do not let me forget the {thing} on {date}. | {date}别让我忘了{thing}。
        Set an alarm for the {thing} on {date}. | 请为{thing}设置{date}的提醒。
        reminder {n} is set | 提醒{n}已设置
        """),
    _family("calendar", "birthday", "person:person", """
        birthdays | 生日查询
        Looks up a person's birthday. | 查询某人的生日。
        When is the birthday of {person}? | {person}的生日是什么时候？
        When was {person} born? | {person}是哪天出生的？
        On which day do I have to congratulate {person}? | 我应该哪天祝{person}生日快乐？
        day {n} of the year | 一年中的第{n}天
        """, held_out=True),
    _family("library", "books", "topic:topic", """
        book search | 图书检索
        Finds books about a topic. | 查找某个主题的图书。
        Which books are there about {topic}? | 有哪些关于{topic}的书？
        Find a book on {topic}. | 请找一本关于{topic}的书。
        I would like to read something about {topic}. | 我想读一些关于{topic}的书。
        {n} books | {n}本书
        """),
    _family("library", "news", "topic:topic count:count", """
        news | 新闻
        Finds the latest news about a topic. | 查找某个主题的最新新闻。
        Show me {count} news items about {topic}. | 请给我{count}条关于{topic}的新闻。
        What are the latest {count} reports on {topic}? | 关于{topic}的最新{count}篇报道是什么？
        Give me {count} headlines on {topic}. | 请列出{count}个关于{topic}的标题。
        the first is number {n} | 第一条是{n}号
        """),
    _family("library", "author", "topic:topic", """
        experts | 专家查询
        Finds an author who knows a topic. | 查找熟悉某个主题的作者。
        Who writes about {topic}? | 谁写过{topic}？
        Name an expert on {topic}. | 请说出一位研究{topic}的专家。
        Whom can I ask about {topic}? | 关于{topic}我可以请教谁？
        author {n} | 作者{n}
        """),
    _family("library", "renew", "topic:topic date:date", """
        loans | 图书续借
        Extends the loan of a book about a topic until a day. | 把某个主题的图书续借到某一天。
        Extend my loan of the book about {topic} until {date}. | 请把关于{topic}的书续借到{date}。
        Renew the book on {topic} until {date}. | 请续借{topic}的书，到{date}为止。
        May I keep the book on {topic} until {date}? | {topic}那本书我能留到{date}吗？
        extended, {n} left | 已续借，还剩{n}次
        """, held_out=True),
    _family("shopping", "price", "thing:thing", """
        prices | 价格查询
        Looks up the price of a thing. | 查询物品的价格。
        How much is a {thing}? | {thing}多少钱？
        What does a {thing} cost? | 一个{thing}要花多少钱？
        Is a {thing} expensive? | {thing}贵吗？
        {n} euros | {n}元
        """),
    _family("shopping", "order", "thing:thing count:count", """
        orders | 下单
        Orders a number of things. | 订购若干件物品。
        Order {count} pieces of {thing}. | 请订购{count}个{thing}。
        I would like to buy {count} pieces of {thing}. | 我想买{count}个{thing}。
        Get me {count} of this: {thing}. | 帮我买{thing}，要{count}个。
        order {n} | 订单{n}
        """),
    _family("shopping", "stock", "thing:thing city:city", """
        stock | 库存查询
        Says how many of a thing a city's shop has. | 查询某个城市的商店有多少件某物品。
        Is there a {thing} in the shop of {city}? | {city}的店里有{thing}吗？
        How many of the {thing} are left in {city}? | {city}还剩多少{thing}？
        Does the branch in {city} have the {thing}? | {city}分店有{thing}吗？
        {n} left | 还有{n}件
        """),
    _family("shopping", "reviews", "thing:thing", """
        reviews | 用户评价
        Collects what customers say about a thing. | 收集顾客对某物品的评价。
        What do customers say about the {thing}? | 顾客对{thing}怎么评价？
        Is the {thing} any good? | {thing}好用吗？
        Do people like the {thing}? | 大家喜欢{thing}吗？
        {n} percent are content | {n}%的人满意
        """, held_out=True),
    _family("home", "lights", "switch:switch count:count", """
        lights | 灯光控制
        Switches the light of a room on or off. | 打开或关闭某个房间的灯。
        {switch} the light in room {count}. | 请{switch}{count}号房间的灯。
        {switch} all lamps of room {count}. | {switch}{count}号房的所有灯。
        {switch} the lighting of room number {count}, please. | 麻烦{switch}{count}号房间的照明。
        done, {n} watts | 完成，{n}瓦
        """),
    _family("home", "heating", "count:count", """
        heating | 暖气控制
        Sets the heating to a number of degrees. | 把暖气设为某个度数。
        Set the heating to {count} degrees. | 请把暖气调到{count}度。
        Make it {count} degrees warm here. | 让这里暖和到{count}度。
        I want {count} degrees in the living room. | 我想让客厅保持{count}度。
        reached in {n} minutes | {n}分钟后达到
        """),
    _family("home", "music", "topic:topic", """
        music player | 音乐播放
        Plays music about a topic. | 播放某个主题的音乐。
        Play a song about {topic}. | 请放一首关于{topic}的歌。
        Put on some music on {topic}. | 来点关于{topic}的音乐。
        I want to hear a tune about {topic}. | 我想听{topic}的曲子。
        track {n} | 第{n}首
        """),
    _family("home", "robot", "switch:switch", """
        vacuum robot | 扫地机器人
        Starts or stops the robot that cleans the floor. | 启动或停止扫地机器人。
        {switch} the vacuum robot. | 请{switch}扫地机器人。
        {switch} the machine that cleans the floor. | {switch}打扫地板的机器。
        {switch} the little floor cleaner, please. | 麻烦{switch}那个扫地的小家伙。
        battery at {n} percent | 电量{n}%
        """, held_out=True),
    _family("travel", "flights", "city:city date:date class:class", """
        flights | 航班查询
        Finds a flight to a city on a day. | 查找某一天飞往某个城市的航班。
        Find {class} flight to {city} on {date}. | 请找{date}去{city}的{class}航班。
        Is there {class} flight to {city} on {date}? | {date}有去{city}的{class}航班吗？
        I need {class} seat in a plane to {city} on {date}. | 我{date}要坐飞机去{city}，想要{class}座位。
        flight {n} | 航班{n}
        """),  # noqa: E501
    _family("travel", "hotel", "city:city count:count", """
        hotels | 酒店预订
        Books a hotel in a city for a number of nights. | 预订某个城市的酒店若干晚。
        Book a hotel in {city} for {count} nights. | 请在{city}订{count}晚酒店。
        I stay in {city} for {count} nights; find a room. | 我在{city}住{count}晚，请找个房间。
        Where can I sleep in {city}? I need {count} nights. | 我在{city}要住{count}晚，住哪里？
        room {n} | 房间{n}
        """),
    _family("travel", "taxi", "person:person city:city", """
        taxis | 叫车
        Sends a taxi for a person in a city. | 为某个城市的某人叫出租车。
        Send a taxi for {person} in {city}. | 请为在{city}的{person}叫一辆车。
        Call a cab for {person} in {city}. | 帮{city}的{person}打车。
        {person} is in {city} and needs a car. | {person}在{city}，需要一辆车。
        in {n} minutes | {n}分钟后到
        """),
    _family("travel", "visa", "city:city", """
        visa rules | 签证规定
        Says whether a visa is needed to visit a city. | 查询访问某个城市是否需要签证。
        Do I need a visa for {city}? | 去{city}需要签证吗？
        May I visit {city} without a visa? | 我可以免签去{city}吗？
        Which papers do I need to enter {city}? | 入境{city}需要什么证件？
        no, for {n} days | {n}天内不需要
        """),
)  # fmt: skip
